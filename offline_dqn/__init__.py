"""Learning a policy from fixed logged data: networks, losses, training, the policy artifact, fitted Q evaluation."""
