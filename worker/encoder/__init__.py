"""An encoder of Q8_0, Q4_K, Q5_K and Q6_K by vectors, whose bytes are ggml's own.

ggml looks for the scale of one sub-block after another. Here each lane of a vector does that for a sub-block
of its own, with the same operations on floats in the same order, so that all rounding is the same.
`blocks.cpp` is compiled once a machine, and used once it has proven itself against the ggml that is there.

    compiling.py        the system's C++ compiler, into the cache
    lanes.hpp           what a vector of sub-blocks can do
    search.hpp          the search for scales, in lanes
    blocks.cpp          from scales to bytes, and the functions that are called
    vector_encoder.py   them from Python; what they leave goes to ggml
    proof.py            its bytes against ggml's, over many kinds of rows
    choosing.py         which encoder an export gets, and why
"""
