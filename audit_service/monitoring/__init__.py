"""What an operator sees: metrics, the reference they are held against, rules, alerts and dashboards."""
