"""Stage `cam`: a multi-class-token classifier and the maps it draws of where each class is."""
