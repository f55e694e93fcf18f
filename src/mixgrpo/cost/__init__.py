"""What a run costs: model calls, operations, seconds and bytes, predicted from the config and the model's shape."""
