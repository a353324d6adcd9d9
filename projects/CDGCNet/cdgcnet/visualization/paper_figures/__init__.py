"""The paper's Figs. 4 to 6 for any trained network and images.

``activations`` holds what the figures show of one image; ``cdgcnet.engine.feature_extractor``
computes it. Each of ``sampling``, ``comparison`` and ``features`` draws one figure, with the frames
and notes of ``boxes`` and ``marks``.
"""

from cdgcnet.visualization.paper_figures.activations import Activations
from cdgcnet.visualization.paper_figures.comparison import ComparedImage, draw_comparison
from cdgcnet.visualization.paper_figures.features import draw_features
from cdgcnet.visualization.paper_figures.sampling import draw_sampling

__all__ = ["Activations", "ComparedImage", "draw_comparison", "draw_features", "draw_sampling"]
