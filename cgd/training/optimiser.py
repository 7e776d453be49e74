"""Adam with a recipe's schedule, on one machine or through the store of several."""

import math

from cgd.system.environment import mx
from cgd.system.errors import InputError


class Optimiser:
    """Moves a network's parameters by their gradients.

    With the store `dist_sync` the gradients of all workers are averaged, and each worker moves its own copy, all alike.
    With `dist_async` the servers hold the parameters, and move them as each worker's gradients come.

    Parameters
    ----------
    parameters : mx.gluon.ParameterDict, whose `lr_mult` are times the rate
    recipe : recipes.Recipe
    store : the kvstore of several machines, or None
    """

    def __init__(self, parameters, recipe, store=None):
        self.recipe, self.workers = recipe, store.num_workers if store else 1
        self.on_servers = bool(store) and "async" in store.type
        self.trainer = mx.gluon.Trainer(
            parameters,
            "adam",
            {"learning_rate": recipe.lr, "wd": recipe.weight_decay},
            kvstore=store or "device",
            update_on_kvstore=self.on_servers,  # otherwise its state stays here, where it can be kept
        )
        self.begun = False

    def learning_rate(self, iteration):
        """The rate of the step after so many: the recipe's, times its factor for each step that lies behind."""
        passed = sum(iteration >= step for step in self.recipe.milestones)
        return self.recipe.lr * self.recipe.gamma**passed

    def step(self, iteration, with_norm=False):
        """One step, after so many: the norm of all gradients over all parameters, if it is asked for, else None.

        The norm is that of the workers' average, or with `dist_async` of this worker's own gradients.
        """
        if not self.begun:
            self._begin(iteration)
        if self.on_servers:
            norm = self._norm() if with_norm else None
            self.trainer.step(1)
            return norm
        self.trainer.set_learning_rate(self.learning_rate(iteration))
        self.trainer.allreduce_grads()
        norm = self._norm() / self.workers if with_norm else None
        self.trainer.update(self.workers)  # each worker's loss is a mean already, and their gradients are summed
        return norm

    def _begin(self, iteration):
        self.begun = True
        if self.on_servers:
            # The servers count the steps of all workers, and know of parameters only their numbers.
            inner = self.trainer._optimizer
            inner.lr_mult = {index: p.lr_mult for index, p in enumerate(self.trainer._params)}
            inner.lr_scheduler = self._servers_schedule(iteration)
            inner.lr = self.learning_rate(iteration)
        self.trainer._init_kvstore()

    def _servers_schedule(self, iteration):
        rate, steps = self.learning_rate(iteration), sorted(step for step in self.recipe.milestones if step > iteration)
        ahead = [(step - iteration) * self.workers for step in steps]
        try:
            return mx.lr_scheduler.MultiFactorScheduler(ahead, self.recipe.gamma, rate) if ahead else None
        except ValueError:
            raise InputError("--kvstore dist_async: expected an --gamma up to 1 and --milestones that differ")

    def _norm(self):
        gradients = [p.list_grad()[0] for p in self.trainer._params if p.grad_req != "null"]
        return math.sqrt(sum(mx.nd.concat(*[g.square().sum() for g in gradients], dim=0).asnumpy().tolist()))

    def state(self):
        """({name: NDArray}, number of steps): all that it takes to go on; nothing where the servers hold it."""
        arrays = {}
        for index, moments in self.trainer._updaters[0].states.items():
            for number, moment in enumerate(moments):
                arrays["moment{}:{}".format(number, self.trainer._params[index].name)] = moment
        return arrays, self.trainer._optimizer.num_update

    def restore(self, arrays, steps):
        """Goes back to what `state` gave."""
        inner = self.trainer._optimizer
        for updater, device in zip(self.trainer._updaters, self.trainer._contexts):
            for index, parameter in enumerate(self.trainer._params):
                own = [arrays.get("moment{}:{}".format(number, parameter.name)) for number in (0, 1)]
                if own[0] is not None:
                    updater.states[index] = tuple(moment.copyto(device) for moment in own)  # changed in place later
                    updater.states_synced[index] = True
        inner.begin_num_update = inner.num_update = steps  # for the parameters on each device
