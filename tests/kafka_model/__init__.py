"""A model of Kafka and of the world around it, in which the real Kafka sink runs; see ``trial``."""
