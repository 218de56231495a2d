"""The record of campaigns and the registry of specialists, both in MLflow. Imports it only when asked."""
