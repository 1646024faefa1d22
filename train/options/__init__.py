"""What Trainer, modules and plug-ins are made with: checked, kept, and described so that they can be made again."""
