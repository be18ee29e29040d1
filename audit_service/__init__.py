"""The plugin: audits for models served with BentoML."""
