"""The networks: the UNet that predicts residual and noise, and the discriminator that reads MAS-GLCM."""
