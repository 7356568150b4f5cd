"""HTTP side of the server: bodies, validation of requests, answers and status codes. Never calls the model."""
