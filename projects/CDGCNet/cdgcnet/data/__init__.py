"""From files to training samples: readers, augmentation, loader, datasets, their preparation."""
