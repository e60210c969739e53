"""What stands before every route, as pure ASGI: keys, rates, bodies, clients that leave."""
