"""What a store does for the routes: the protocol, operations, and what each store decides alike."""
