"""Inference scaling as T1 measures it (arXiv 2501.11651): accuracy against the budget of thinking tokens.

One full response is written for each sample and stored, as token ids. Its thinking is cut at each budget, and an answer
is written from what is left: by a separate *summariser*, which is the paper's protocol, or by the policy *itself*,
which closes its thinking there (budget forcing). The two are named apart wherever they are shown. A response whose
thinking ended within the budget keeps its own answer.

**What is ours.** The paper does not say which model summarises, how it is asked, or how answers are drawn. Here the
summariser goes on behind the cut thinking and the words that close it (`Task.closing`), token by token where it has the
policy's vocabulary, as the run's own start has; else the thinking goes through text and is encoded anew, and the result
says so. A budget counts the policy's thinking tokens, not the answer's: what writing the answers took is counted
beside it.

**The same random numbers**, by prompt, sample and place: the thinking at a smaller budget is a head of that at a larger
one, and two policies with equal weights give equal curves.
"""

from stockpot.budgets.measure import Setup, measure
from stockpot.budgets.result import HOWS, Curve, How, Point, Scaling
from stockpot.pens import Writer

__all__ = ["HOWS", "Curve", "How", "Point", "Scaling", "Setup", "Writer", "measure"]
