"""A budget for each layer and each part of a run, from measured errors: least error for a cost, or least cost."""
