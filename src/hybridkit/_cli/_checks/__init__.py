"""The checks of `hybridkit doctor`: the surroundings of a service, each looked at without a change."""
