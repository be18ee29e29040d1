"""What a request meets inside an audited service, from middleware to the audit endpoints."""
