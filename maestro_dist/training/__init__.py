"""What one worker does: builds the model and its data, trains, validates."""
