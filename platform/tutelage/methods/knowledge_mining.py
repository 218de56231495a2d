"""Knowledge mining: rounds of prompting, gating and fine-tuning, and one specialist that is deployed.

Mao et al., 2025. Published: a specialist learns from the labeled images, its predictions on the
others become prompts for a frozen SAM, SAM's masks become pseudo-labels, and the specialist is
fine-tuned on both, again and again. Not published, and reconstructed: gates, prompts and numbers.
Prompts and gates are settings of `prompts` and `curation` (the mined mask counts as much as it
overlaps with the specialist's, and where a gate refuses it the voxels on which both agree), and
are obeyed before training. What remains is here: cross entropy and Dice of labels and
pseudo-labels in one weighted mean, of which at least half is from labels: settings refuse less.

Of the reconstruction three things are left out. The specialist prompts by one look, not by the mean
of several turned ones: it never learned from turned images, which would have the liver left, and
each look costs a pass. Rounds do not stop when validation no longer improves: `rounds` says how many,
and promotion keeps the better specialist, so that one too many costs time alone. No answer is refused
because the generalist thinks little of it: measured on LiteMedSAM, that opinion and the true Dice
correlate by .79 on solid organs and by about -.2 on a ring (`curation.min_predicted_iou` would
refuse).
"""

from tutelage.methods.supervised import Supervised


class KnowledgeMining(Supervised):
    """Terms: `cross_entropy` and `dice` of labels and pseudo-labels in one mean: in a mean of its own,
    what is half believed would count in full. It starts from the specialist of the stage before."""
