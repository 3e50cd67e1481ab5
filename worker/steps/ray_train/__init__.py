"""A training on several machines by Ray Train. The step's process drives it, and alone touches Lathe's disk:

`drive.py` runs in the step: it joins the cluster, has Ray start the workers, and answers what they ask.
`desk.py` is what it answers: inputs in pieces, checkpoints that come in, what rank 0 has to say.
`mailbox.py` lies between, an actor of Ray.
`on_worker.py` runs in each worker: it trains. `errands.py` is for its files, `scratch.py` for their place.
"""
