"""What keeps a training alive and whole: checkpoints, the average, several processes. It knows no
Trainer.
"""
