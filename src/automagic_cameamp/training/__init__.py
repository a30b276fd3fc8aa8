"""What training loops do around the step: release, offload, precision, recording, a trial of the resume."""
