"""What keeps a training alive: checkpoints, the average, several processes. It knows no Trainer."""
