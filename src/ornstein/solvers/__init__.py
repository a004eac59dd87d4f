"""Samplers: tables, the loop that runs them, and the solvers and grids that write them."""

from .accelerated import AcceleratedDDIM, AcceleratedDDPM
from .adams_bashforth import AdamsBashforth
from .adaptive import AdaptiveRungeKutta, AdaptiveSamples, AdaptiveSolver, GottaGoFast, sample_adaptive
from .ays import AYS, klub
from .binomial import BinomialAncestral
from .brownian import BrownianPath
from .churn import Churn
from .conjugate import Conjugate
from .constant_acceleration import ConstantAccelerationFlow, initial_velocity
from .ddim import DDIM, DDPM
from .deis import DEIS
from .denoising_mcmc import Chain, denoising_mcmc, langevin_gibbs
from .dpm2 import DPM2
from .dpm_solver import DPMSolver, DPMSolverPP
from .dpm_solver_v3 import DPMSolverV3, ModelStatistics
from .error import Choice, Doubled, Embedded, choose_steps
from .euler import Euler
from .evodiff import EVODiff
from .few_step import FewStep, Recipe
from .gaussian_start import GaussianStart
from .gits import GITS, trajectory_variance
from .grids import CosineGrid, Grid, Karras, LogSNR, Polynomial, Quadratic, Shifted, Timesteps, Uniform
from .heun import Heun
from .langevin import PredictorCorrector, langevin
from .loop import Hook, Loop, Moment, Resample, Stepper
from .moments import Response, response
from .momentum import GHVB, HB
from .parallel import ParallelSamples, sample_parallel
from .particles import ParticleFilter, Particles, particle_filter, resample
from .perturbed import PerturbedDDPM
from .pndm import PNDM
from .rddm import RDDM
from .restart import Restart
from .reverse_sde import EulerMaruyama, StochasticHeun
from .runge_kutta import RK4, Kutta3, Kutta38, Midpoint, Ralston
from .sa_solver import SASolver
from .sample import Samples, sample
from .schedule_search import Calibrated, cheapest_paths, jump_costs
from .sde_dpm_solver import SDEDPMSolverPP
from .select_start import Start, select_start
from .solver import Solver, compile_table
from .splitting import ReducedSymplecticEuler, Splitting
from .table import ProductTable, Table, Writer
from .transitions import Transitions, record
from .unipc import UniPC

__all__ = [
    "AYS",
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "GHVB",
    "GITS",
    "HB",
    "PNDM",
    "RDDM",
    "RK4",
    "AcceleratedDDIM",
    "AcceleratedDDPM",
    "AdamsBashforth",
    "AdaptiveRungeKutta",
    "AdaptiveSamples",
    "AdaptiveSolver",
    "BinomialAncestral",
    "BrownianPath",
    "Calibrated",
    "Chain",
    "Choice",
    "Churn",
    "Conjugate",
    "ConstantAccelerationFlow",
    "CosineGrid",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverV3",
    "Doubled",
    "EVODiff",
    "Embedded",
    "Euler",
    "EulerMaruyama",
    "FewStep",
    "GaussianStart",
    "GottaGoFast",
    "Grid",
    "Heun",
    "Hook",
    "Karras",
    "Kutta3",
    "Kutta38",
    "LogSNR",
    "Loop",
    "Midpoint",
    "ModelStatistics",
    "Moment",
    "ParallelSamples",
    "ParticleFilter",
    "Particles",
    "PerturbedDDPM",
    "Polynomial",
    "PredictorCorrector",
    "ProductTable",
    "Quadratic",
    "Ralston",
    "Recipe",
    "ReducedSymplecticEuler",
    "Resample",
    "Response",
    "Restart",
    "SASolver",
    "SDEDPMSolverPP",
    "Samples",
    "Shifted",
    "Solver",
    "Splitting",
    "Start",
    "Stepper",
    "StochasticHeun",
    "Table",
    "Timesteps",
    "Transitions",
    "UniPC",
    "Uniform",
    "Writer",
    "cheapest_paths",
    "choose_steps",
    "compile_table",
    "denoising_mcmc",
    "initial_velocity",
    "jump_costs",
    "klub",
    "langevin",
    "langevin_gibbs",
    "particle_filter",
    "record",
    "resample",
    "response",
    "sample",
    "sample_adaptive",
    "sample_parallel",
    "select_start",
    "trajectory_variance",
]
