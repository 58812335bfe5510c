"""Search space, architectures and the weight-sharing network that is trained once for all of them."""
