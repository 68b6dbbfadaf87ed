"""A generated world: pictures of scenes, and twelve datasets about them in official layouts."""
