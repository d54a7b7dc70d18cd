"""What a gateway does with other machines because a request says so: webhooks, and images by URL."""
