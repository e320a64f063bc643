"""The LightningModule, its optimizer, its metrics and its callbacks."""
