"""What a room is: furniture and fittings of solids with textures, its mesh, its light."""
