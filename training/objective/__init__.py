"""What training minimises: supervision, teacher targets, loss, and the schedules of teacher and learning rate."""
