"""What learns and acts: commands, Lightning modules, losses, environments."""
