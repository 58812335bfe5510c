"""Search spaces, architectures and the weight-sharing network that scores them (BigNAS)."""
