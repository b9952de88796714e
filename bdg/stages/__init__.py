"""The three training stages, one LightningModule each, on a shared step."""
