"""The network: backbone, head, meta-architecture, sliding window, test-time augmentation."""
