"""What a camera sees of a room: the lens and the walk, pictures with exact depth and object ids."""
