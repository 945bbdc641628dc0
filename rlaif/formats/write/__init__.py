"""The shapes that data sets are written in, one file for each.

To add one: a file with a `Shape`, imported here and given its line in `SHAPES`.
"""

from rlaif.formats.write.binarized import BINARIZED
from rlaif.formats.write.hh import HH
from rlaif.formats.write.preference import PREFERENCE
from rlaif.formats.write.ranked import RANKED
from rlaif.formats.write.rated import RATED
from rlaif.formats.write.rewardbench import REWARDBENCH
from rlaif.formats.write.scored import SCORED
from rlaif.formats.write.sft import SFT
from rlaif.formats.write.shape import Shape
from rlaif.formats.write.soft import SOFT
from rlaif.formats.write.ultrafeedback import ULTRAFEEDBACK

SHAPES: dict[str, Shape] = {
    "preference": PREFERENCE,
    "sft": SFT,
    "ultrafeedback": ULTRAFEEDBACK,
    "binarized": BINARIZED,
    "hh": HH,
    "rewardbench": REWARDBENCH,
    "soft": SOFT,
    "ranked": RANKED,
    "rated": RATED,
    "rewardbench-scores": SCORED,
}
