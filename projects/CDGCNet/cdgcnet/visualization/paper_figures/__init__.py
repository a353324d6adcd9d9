"""The paper's Figs. 4 to 6 for any trained network and images.

Reading order: ``observe`` (runs the network and keeps what the figures show), ``canvas`` (a page of
pictures), ``boxes`` (frames), then one module per figure: ``sampling``, ``comparison``,
``features``. The command is ``cdgcnet figures``.
"""

from cdgcnet.visualization.paper_figures.comparison import draw_comparison
from cdgcnet.visualization.paper_figures.features import draw_features
from cdgcnet.visualization.paper_figures.observe import Observation, Observer
from cdgcnet.visualization.paper_figures.sampling import draw_sampling

__all__ = ["Observation", "Observer", "draw_comparison", "draw_features", "draw_sampling"]
