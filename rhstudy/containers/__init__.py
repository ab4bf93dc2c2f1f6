"""Stages in containers: the image, one container run to its true end, the MLflow project backend, studies."""
