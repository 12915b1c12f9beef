"""SOUP inference (arXiv 2601.21476): an older checkpoint of a run writes the head of a response, the last one ends it.

Two arms, the same held-out prompts and as many samples of each: the *single* model, and *SOUP*. They are compared at
equal samples and at equal decoded tokens. The paper says of this only that it raises pass@k; all that follows is ours.

**Where to cut.** How long a response becomes is not known when its head is begun. So the head's length is drawn evenly
between two fractions of the finishing policy's mean response length over these prompts, at least one token and leaving
room for one. It is one number for all prompts: that much is known from any evaluation made before (`test/length`),
whereas a prompt's own mean length could only be had by sampling the single model first, with tokens that nobody
counts. A checkpoint that finishes before its cut loses its stop token, and the last one decides how to go on.

**What counts.** Every token that either model decoded, such lost stop tokens included. Reading a prompt or a head does
not count.

**The same random numbers** are used in both arms: a token drawn at the same place of the same sample differs only if
the models do. Two models with equal weights give equal arms, and the difference between others has less noise.
"""

from stockpot.soup_inference.decode import compare
from stockpot.soup_inference.result import Arm, Comparison, Heads, Row

__all__ = ["Arm", "Comparison", "Heads", "Row", "compare"]
