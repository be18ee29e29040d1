"""What a service keeps: its database, predictions, outcomes, ids, encryption."""
