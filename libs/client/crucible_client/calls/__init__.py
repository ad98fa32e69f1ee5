"""Every request to the gateway, one module for each topic; both clients send these."""
