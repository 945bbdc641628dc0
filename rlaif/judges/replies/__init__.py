"""Reading a judge's reply: the rating, score, verdict or ranking that it clearly gives, or *unparsed* with the reason.

Nothing is guessed. Two rules hold for every kind:

- Words count only in a formal position: a line of its own, after its keyword (`Rating: 4`), in double brackets, in a
  JSON field; or, for a verdict, as the sentence that the reply opens or concludes with. Other words in the middle of a
  sentence, in quotation marks or in a block quotation belong to its reasons.
- Two values in such positions that differ are unparsed. The last one does not win: a judge that quotes a completion's
  injected verdict after its own writes the same words as one that corrects itself. A value that the reply disowns, in a
  sentence or in another field, is unparsed too.

From below upwards: `patterns` (expressions that are compiled and searched only where they may match), `words` (what
all kinds share), `second_thoughts` (what a judge says of its own answer), `objects` (a JSON object and its fields),
`scales` (what a reply says of its numbers) and `conclusions` (what it says of two candidates), then `ratings`,
`scores`, `verdicts`, `rankings` and `nothing`.
"""

from rlaif.judges.replies.nothing import finds_nothing
from rlaif.judges.replies.rankings import RankGroups, read_ranking
from rlaif.judges.replies.ratings import read_json, read_lines, read_reply
from rlaif.judges.replies.scores import read_score
from rlaif.judges.replies.verdicts import read_choice
from rlaif.judges.replies.words import Reading, unusable

__all__ = [
    "RankGroups",
    "Reading",
    "finds_nothing",
    "read_choice",
    "read_json",
    "read_lines",
    "read_ranking",
    "read_reply",
    "read_score",
    "unusable",
]
