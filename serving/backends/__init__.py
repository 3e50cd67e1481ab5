"""Who answers prompts: one small interface, and what speaks it.

`interface` is what a backend is, your own included; `configuration` reads the operator's file of them;
`guarding` stands before each: so many at once, so long, once more; `roster` has them all by name.
"""
