"""A vision-language model as a policy: loaded, checked, asked and measured."""
