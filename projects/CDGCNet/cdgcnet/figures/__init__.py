"""The paper's Figs. 4 to 6 for any trained network and images.

``observe`` runs the network and keeps what the figures show; ``draw`` draws. The command is
``tools/make_figures.py``.
"""

from .draw import draw_comparison, draw_features, draw_sampling
from .observe import Observation, Observer

__all__ = ["Observation", "Observer", "draw_comparison", "draw_features", "draw_sampling"]
