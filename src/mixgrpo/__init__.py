"""Post-train flow-matching image models with rewards: MixGRPO (arXiv 2507.21802) and its family."""

__version__ = "0.1.0"
