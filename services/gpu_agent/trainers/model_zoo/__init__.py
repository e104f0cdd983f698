"""Models made on the spot, so that a demo and the tests need no download: `tiny`, `arithmetic`, `smollm2`."""
