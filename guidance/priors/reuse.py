"""Another use of the machine by a prior that is loaded already: for a run whose memory came to its end."""

import dataclasses

from guidance.priors.assembly import TEXT_ENCODERS
from guidance.priors.parts import Parts
from guidance.priors.resources import Resources, economise, offload_layers


def use_as(parts: Parts, resources: Resources) -> Parts:
    """A prior's parts as ``resources`` say from now on; its modules are changed in place, and its answers are not.

    What is followed is offloading, the autoencoder's slicing, and checkpointing; the rest is settled by loading.
    Adapters that were made before keep to what was said then, and have lost the network if its layers wait now.
    """
    network, idle = parts.network.model, ()
    economise(network, parts.modules.get("vae"), resources)
    offload_layers(network, resources.offload == "layers", parts.device)
    if resources.offload != "none":
        idle = tuple(name for name in TEXT_ENCODERS if name in parts.modules)
    for name in set(idle) ^ set(parts.idle):
        parts.modules[name].to("cpu" if name in idle else parts.device)
    return dataclasses.replace(parts, resources=resources, idle=idle)
