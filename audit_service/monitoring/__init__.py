"""What an operator sees: metrics, the baseline they are held against, rules, alerts and dashboards."""
