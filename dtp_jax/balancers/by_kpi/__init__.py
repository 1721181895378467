"""What reads the KPIs of the tasks: the cost of a fixed weighted sum of the losses."""
